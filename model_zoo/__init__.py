"""What a model is: one file per Hugging Face `model_type`, each with its config, weight table and graph."""
