"""How an accelerator does it: the contract, the registry, shared families of kernels, and one folder per platform."""
