"""Shared by both services and the client. Imports nothing: pick what you need."""
