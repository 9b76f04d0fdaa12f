"""What the losses share: masks, checks, products, geometry, softmax, labels."""
