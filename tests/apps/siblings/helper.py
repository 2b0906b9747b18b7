"""Helps."""


def help_with(number):
    from second_helper import one  # found though it is imported late

    return 2 * number + one()
