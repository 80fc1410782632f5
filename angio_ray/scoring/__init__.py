"""The pipeline: manifest -> decode -> score -> one row per object, committed as it goes. Only this and training know Ray."""
