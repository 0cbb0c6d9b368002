"""Pure tensor code that knows no plan and no method."""
