"""Files of rows in any format, and what they say as Samples."""
