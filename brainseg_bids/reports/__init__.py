# SPDX-License-Identifier: Apache-2.0
"""What a person looks at: pictures of a segmentation, and the pages that hold them."""
