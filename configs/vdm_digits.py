"""Variational diffusion model on the digits: the noise schedule is trained with the network.

python main.py --config=configs/vdm_digits.py --mode=train
python main.py --config=configs/vdm_digits.py --mode=eval

Kingma et al. 2021, arXiv:2107.00630. The network is that of vp_digits. The variant `fixed` keeps
the first schedule, whose log-SNR falls almost linearly, and trains the network by the same bound.
"""

from ml_collections import ConfigDict

from configs import vp_digits


def get_config() -> ConfigDict:
    config = vp_digits.get_config()
    config.sde.name = "learned"
    config.loss.name = "learned_schedule"
    config.sde.log_snr_max = 8.0  # noise of 1 / 7 of a gray level
    config.data.dequantization = "truncated_normal"
    return config
