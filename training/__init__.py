"""The trainings behind the shipped models: each script is read top to bottom, with one visible loop."""
