"""Sign-in to the pages for browsers on other machines."""
