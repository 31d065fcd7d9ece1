"""`metaxlm init`: a commented recipe for the user's own text, sized by the text and the machine."""
