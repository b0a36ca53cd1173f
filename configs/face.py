"""RepMLP-FaceRes on MS1M-V2, by the recipe of the paper's Section 4.4: 420,000 iterations of 512 images.

python train.py --config=configs/face.py --config.test_dataset=NAME

MS1M-V2 has to be prepared as a TFDS dataset `ms1m_v2` with features `image` and `label`; so has a dataset of other
people to verify on, whose split "test" is read.
"""

from repmlp_jax.training import default_config
from repmlp_jax.training.recipe import pick_variant

VARIANTS = {"": "RepMLP-FaceRes", "base": "FaceResNet"}


def get_config(variant=""):
    config = default_config()
    config.task = "faces"
    config.model = pick_variant(VARIANTS, variant, __file__)
    config.dataset = "ms1m_v2"
    config.num_people = 85_742
    config.batch_size = 512
    config.epochs = 37  # of 5,822,653 images: 420,000 iterations
    config.learning_rate = 0.1
    config.schedule = "steps"
    config.drop_at = (0.6, 0.8667, 0.9667)  # after 252,000, 364,000 and 406,000 iterations
    config.weight_decay = 1e-4
    config.crop_padding = 0
    config.workers = 8
    return config
