"""Selecting one of several candidates by what each costs and reaches."""
