"""memcore"""
