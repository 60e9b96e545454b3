# SPDX-License-Identifier: Apache-2.0
"""What BIDS asks for: finding inputs, naming outputs, describing the dataset."""
