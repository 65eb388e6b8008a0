"""Generalizable fields: one network for whole data sets, each instance a small pattern."""
