"""Weight codes stored below their entropy, and the ledger of what they take."""
