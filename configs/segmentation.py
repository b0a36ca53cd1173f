"""PSPNet on RepMLP-ResNet-50 for Cityscapes, by the recipe of the paper's Section 4.5.

python train.py --config=configs/segmentation.py --config.init_from=FOLDER   # of a trained RepMLP-Res50

"""

from repmlp_jax.training import default_config
from repmlp_jax.training.recipe import pick_variant

VARIANTS = {"": "PSPNet-RepMLP-Res50", "base": "PSPNet-Res50"}


def get_config(variant=""):
    config = default_config()
    config.task = "segmentation"
    config.model = pick_variant(VARIANTS, variant, __file__)
    config.dataset = "cityscapes"
    config.eval_split = "validation"
    config.eval_every_epochs = 10
    config.eval_batch_size = 8
    config.epochs = 200
    config.batch_size = 16
    config.learning_rate = 0.01
    config.schedule = "poly"
    config.weight_decay = 1e-4
    config.workers = 8
    return config
