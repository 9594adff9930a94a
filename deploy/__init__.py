"""Deployments on several machines."""
