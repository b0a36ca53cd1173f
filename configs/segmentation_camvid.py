"""A narrow PSPNet on RepMLP-ResNet for CamVid's street scenes, in minutes on 2 cores.

python train.py --config=configs/segmentation_camvid.py

"""

from repmlp_jax.training import default_config


def get_config():
    config = default_config()
    config.task = "segmentation"
    config.dataset = "camvid"
    config.model = "PSPNet-RepMLP-Res50"
    config.model_arguments = dict(
        num_classes=11,
        image_size=(153, 233),  # maps of 20×30 pixels in c3 and c4
        stage_sizes=(1, 2, 3, 1),
        widths=(32, 64, 128, 128),
        stem_features=16,
        conv_kernels=(1, 3, 5),
        groups=(2, 2),
        r=(1, 2),
    )
    config.epochs = 20  # of 45 steps
    config.warmup_epochs = 1.0
    config.batch_size = 8
    config.eval_batch_size = 4
    config.eval_every_epochs = 10
    config.optimizer = "adamw"
    config.learning_rate = 4e-3
    config.schedule = "poly"
    config.weight_decay = 0.01
    config.crop_scale = (0.5, 1.5)
    return config
