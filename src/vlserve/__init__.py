"""vlserve: put trained image + text models into production."""
