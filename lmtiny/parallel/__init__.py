"""One program on many devices: the mesh, logical axes -> mesh axes, hosts, and the kernels written for a shard."""
