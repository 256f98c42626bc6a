"""Files that people see or download: atomic writing, images, text tables, checked downloads."""
