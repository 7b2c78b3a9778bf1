"""The campaign file: its sections, its template, its checks."""
