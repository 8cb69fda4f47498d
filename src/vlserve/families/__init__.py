"""What the recipes of several families share: configurations, served inputs and graph plans."""
