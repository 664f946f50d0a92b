"""How many weights to keep, in which groups, and which: exact counts without sorting."""
