"""What runs have come to: tables beside the literature's figures, pages of one file, and the command for both."""
