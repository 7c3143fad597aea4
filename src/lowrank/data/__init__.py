"""Download, store, split and read datasets of images."""
