"""What the stages share: one subject a file. Imports go down only; tests/test_house.py holds the order."""
