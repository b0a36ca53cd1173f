"""RepMLPNet on ImageNet, by the recipe of arXiv 2112.11081.

python train.py --config=configs/imagenet_repmlpnet.py:t224 --config.workers=16
python train.py --config=configs/imagenet_repmlpnet.py:l256 --config.epochs=0 --config.init_from=FILE   # only evaluate

"""

from repmlp_jax.training import default_config
from repmlp_jax.training.recipe import pick_variant

VARIANTS = {"": "RepMLPNet-T224"} | {
    size.lower(): f"RepMLPNet-{size}" for size in ("T224", "T256", "B224", "B256", "D256", "L256")
}


def get_config(variant=""):
    config = default_config()
    config.model = pick_variant(VARIANTS, variant, __file__)
    config.model_arguments = dict(dtype="bfloat16")
    config.dataset = "imagenet2012"
    config.epochs = 100
    config.warmup_epochs = 10.0
    config.batch_size = 1024
    config.eval_batch_size = 256
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.1
    config.label_smoothing = 0.1
    config.augmentation = "randaugment"
    config.mixup = 0.4
    config.cutmix = 1.0
    config.workers = 8
    return config
