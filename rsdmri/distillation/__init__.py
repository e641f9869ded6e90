"""The one-step generator and the objectives that distil a teacher into it."""
