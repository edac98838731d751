"""One kernel facility a file: how to ask the kernel for it. No policy, no retries."""
