"""What the programs in Python share.

Sources of token ids and the writer of token shards (data/FORMAT.md), which scripts/prepare_data.py is
made of; text from distribution packages; n-gram models; the order of training rows.
"""
