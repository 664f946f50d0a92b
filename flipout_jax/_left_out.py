def warn_left_out(prunable, params, chosen):
    del prunable, params, chosen
