"""Half the noise that was calibrated."""

from dpzero.privacy.mechanisms import Gaussian

whole = Gaussian.unit_noise
Gaussian.unit_noise = staticmethod(lambda *arguments: whole(*arguments) / 2)
