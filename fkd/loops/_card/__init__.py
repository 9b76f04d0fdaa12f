"""What came out of a distillation: students beside their teacher."""
