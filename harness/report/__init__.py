"""One file a format; all of them show what ``content`` says."""
