"""Wrong captions, one edit away from right ones, and the files in which NegCLIP and CE-CLIP publish theirs."""
