# SPDX-License-Identifier: Apache-2.0
"""What each label looks like in real images."""
