"""The ports on Google Cloud: Memorystore, Firestore and Cloud Tasks, or their emulators."""
