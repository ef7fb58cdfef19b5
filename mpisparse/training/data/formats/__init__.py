"""The layouts in which CIFAR-10 is passed around, one a file: each reader returns pixels and labels, or a DataError."""
