"""The proof: addressed cases, a float64 oracle, verdicts, bundles, and evidence that the suite catches real bugs."""
