"""Text to verified, indexed tokens: encoding, shards, manifests, mixtures."""
