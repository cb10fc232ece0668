"""The training loop: `train` tells the whole story, the other files hold its parts."""
