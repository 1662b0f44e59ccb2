"""Settings of the whole test run."""

import torch

# Small operations are slower on many threads, most of all beside other processes. Tests of threads
# set their own number.
torch.set_num_threads(1)
