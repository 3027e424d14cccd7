"""What long work shares: files, tensors, the cache, progress, devices, threads, memory, processes."""
