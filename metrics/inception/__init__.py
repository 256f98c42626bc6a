"""Inception-v3 of the Frechet Inception Distance: the network, and its published weights."""
