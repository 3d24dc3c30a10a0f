"""What a person looks at: the terminal's tables, the card and pictures of a dataset, measurements of bits."""
