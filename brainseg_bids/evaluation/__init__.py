# SPDX-License-Identifier: Apache-2.0
"""How far two label maps agree."""
