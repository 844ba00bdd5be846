"""Experiment tracking that never needs the network.

Training code imports `spoolagent.writers`; everything else is for agents. This module stays empty of
imports so that `import spoolagent.writers.tensorboard` costs a training script next to nothing.
"""

__version__ = "0.1.0"
