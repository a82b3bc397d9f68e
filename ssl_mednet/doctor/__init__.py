"""`ssl-mednet doctor`: what this machine has, what is amiss, and what to do about it."""
