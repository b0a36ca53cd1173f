"""A narrow RepMLP-FaceRes on ORL's faces: trained on 30 people, verified on 10 others, in minutes on 2 cores.

python train.py --config=configs/face_orl.py

"""

from repmlp_jax.training import default_config


def get_config():
    config = default_config()
    config.task = "faces"
    config.dataset = "orl_faces"
    config.model = "RepMLP-FaceRes"
    config.model_arguments = dict(
        image_size=(48, 48),
        in_features=1,
        stage_sizes=(3, 2, 2),
        widths=(16, 32, 64),
        mid_widths=(16, 32, 64),
        stem_features=16,
        embedding_features=128,
    )
    config.epochs = 100
    config.warmup_epochs = 2.0
    config.batch_size = 60
    config.eval_batch_size = 104
    config.eval_every_epochs = 10
    config.learning_rate = 0.1
    config.weight_decay = 5e-4
    config.crop_padding = 4
    # Softer than for a million faces: of ten pictures a person the margin of 0.35 is learnt by heart.
    config.margin = 0.2
    config.scale = 16.0
    return config
