"""What makes a step fast and changes no number beyond rounding. grpo/ says what is computed."""
